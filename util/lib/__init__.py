"""What the commands share. Nothing here is run by itself."""
