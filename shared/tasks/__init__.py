"""Models, batches, losses and metrics, one file per task; torch is imported only here."""
