"""The trust boundary: every untrusted file is opened here."""
