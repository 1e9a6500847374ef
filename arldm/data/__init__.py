"""Stories: from bytes to tensors."""
