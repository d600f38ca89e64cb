"""The loss of derivatives: what is compared, reduced and reported; torch alone."""
