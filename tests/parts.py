"One part of a report page, as HTML."
from arldm.report.page import render

def part(name, *data):
    "What a macro of parts.html writes."
    return render('part.html', name=name, data=data).partition('<main>')[2].partition('</main>')[0]
