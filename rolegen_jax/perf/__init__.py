"""Performance without and on hardware: ahead-of-time compilation, analytic FLOPs, throughput."""
