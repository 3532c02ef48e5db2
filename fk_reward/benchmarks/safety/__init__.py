"""Safety with a certificate: images by a gate with retries and abstention, and a bound on how many are unsafe."""
