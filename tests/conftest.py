"What pytest has to know of all tests."

def pytest_configure(config):
    about = 'what a CUDA GPU computes; as far as it can, it runs on the CPU too'
    config.addinivalue_line('markers', f'gpu: {about}')
