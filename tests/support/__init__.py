"""Fakes and makers that tests of several packages share. Fakes implement the ports; nothing here patches anything."""
