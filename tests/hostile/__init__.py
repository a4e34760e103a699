"""What a server must bear from those who wish it ill: made-up input, and floods."""
