"""From the app's queue to the collector, in a background thread."""
