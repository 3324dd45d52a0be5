"""notewave.benchmarks"""
