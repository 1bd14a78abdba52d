"""What programs in other languages build on."""
