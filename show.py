import json,sys
nb=json.load(open('/work/main/nbs/17_ssid.ipynb'))
for c in nb['cells'][int(sys.argv[1]):]:
    if c['cell_type']=='code':
        for o in c['outputs']:
            t=o.get('text') or (o.get('data',{}).get('text/markdown') or o.get('data',{}).get('text/plain') or o.get('traceback'))
            print('----', ''.join(c['source'])[:50].replace('\n',' | '), '\n', ''.join(t or [])[:1500])
