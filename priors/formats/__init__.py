"""Published formats of priors, one a file: a loader, and a description that reads no weights."""
