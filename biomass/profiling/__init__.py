"""What ``biomass profile`` is made of: what makes vectors of images, the moments of plates, post-processing."""
