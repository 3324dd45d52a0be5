"""What runs a voice: one protocol, an implementation for each kind of device."""
