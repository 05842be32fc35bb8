"""From image and video files to uint8 tiles."""
