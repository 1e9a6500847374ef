"""The toy world, a laboratory whose facts can be counted."""
