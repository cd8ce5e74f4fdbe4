"""Records of clips, their store, and the ledger of work that is done."""
