"""notewave.export"""
