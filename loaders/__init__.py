"""From a request (video, frames) to frames on the device."""
