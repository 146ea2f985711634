"""`rolegen serve`: a trained run behind HTTP. Requests become batches on the device (dispatch,
batcher, engine), users and items change meanwhile (users, items), answers say why (answers)."""
