"""The report page: markup that escapes, charts, readers of the stages' files, and sections."""
