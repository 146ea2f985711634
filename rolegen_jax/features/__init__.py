"""What is counted on training events: interest shift, excitation and item transitions."""
