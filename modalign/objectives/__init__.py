"""What trains a head."""
