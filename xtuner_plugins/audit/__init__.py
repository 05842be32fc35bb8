"""What a data set really holds: every record and image opened, copies, leaks, shares, and what a step trains on."""
