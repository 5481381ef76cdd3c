"""The report's claims measured in miniature, behind ``make reproduce``: a file a claim, see ``claim.py``."""
