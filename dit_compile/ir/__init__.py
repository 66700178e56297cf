"""The intermediate representation: Programs, their text, their verifier and their differences."""
