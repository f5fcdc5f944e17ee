"""Token stores on disk and the batches made from them."""
