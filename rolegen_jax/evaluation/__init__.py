"""What a model is worth: ranking metrics with intervals, diversity, role agreement, the baselines every model is reported
beside (rules and SASRec), and the self-contained report."""
