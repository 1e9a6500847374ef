"""One complete model: AR-LDM, its encoders and its weights."""
