"""Raw data -> token stores: one runnable module a data set, and downloading."""
