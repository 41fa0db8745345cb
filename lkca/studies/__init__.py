"""What is measured on models and on machines."""
