"""Where items come from: each module here registers a `dataset_type`."""
