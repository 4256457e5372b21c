"""Images with stable ids, labels and groups: data sets, transforms, splits, class filters."""
