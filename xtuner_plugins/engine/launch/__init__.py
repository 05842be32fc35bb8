"""From a command to training processes: XTuner's early entry, our launcher, and what a rank's process runs."""
