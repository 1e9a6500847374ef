"""Files: atomic writes, manifests, pictures, HDF5, and folders of others that are read safely."""
