"""What a judge can be shown: one file per modality. `base.py` has `Media`, `files.py` reads files safely."""
