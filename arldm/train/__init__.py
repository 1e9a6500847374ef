"""Training as a generator of records that resumes bit-exactly."""
