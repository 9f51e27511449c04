"""Storage: files of this machine, and objects of S3 and Google Cloud, behind the same functions."""
