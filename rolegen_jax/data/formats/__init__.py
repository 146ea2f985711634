"""The public logs, each as a description: which files, which fields of them, what they mean.
`description.py` says what there is to say; `shops.py`, `media.py` and `recbole.py` say it of each
log; `adapters.py` reads them all. What an event stands for is a choice: `purchase` is predicted."""
