"""Pictures in, numbers out, each with its interval."""
