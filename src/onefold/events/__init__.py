"""What people and visitors did."""
