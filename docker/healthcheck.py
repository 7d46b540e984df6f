"""The health check of the images: is the service ready, this one or that of a worker (BLACKBOX_URL)?"""

import os
import sys
import urllib.request

url = os.environ.get("BLACKBOX_URL") or f"http://127.0.0.1:{os.environ.get('BLACKBOX_PORT', '8800')}"
try:
    urllib.request.urlopen(f"{url}/readyz", timeout=4).close()
except OSError as error:
    sys.exit(f"{url}/readyz: {error}")
