"""Sources of items: each module here registers a `dataset_type`."""
