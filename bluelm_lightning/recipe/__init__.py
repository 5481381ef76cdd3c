"""The report's chain in miniature, behind ``make recipe``: real data, every stage, what each gained."""
