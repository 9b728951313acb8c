"""What a server of lip-synced videos does, without HTTP and without Ray: jobs, templates, limits, the worker."""
