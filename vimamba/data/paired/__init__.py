"""Two images or volumes each: dates of one place with labels, or what lies onto one another."""
