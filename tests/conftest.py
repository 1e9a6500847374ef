"What pytest has to know of all tests."

def pytest_configure(config):
    config.addinivalue_line('markers', 'gpu: what a CUDA GPU computes; as far as it can, it runs on the CPU too')
