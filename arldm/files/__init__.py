"""Files that are whole, ours and bounded."""
