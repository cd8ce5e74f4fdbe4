"""ea-lora"""
