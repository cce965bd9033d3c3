"""The web process: a page with a button that sends a confirmation by mail."""
import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

from django.core.mail import send_mail
from django.http import HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

PAGE = '<form method="post"><input name="to" value="you@example.com"><button>Order</button></form>'


@csrf_exempt
def order(request):
    if request.method != "POST":
        return HttpResponse(PAGE)
    # Returns when the relay has the mail on its disk: milliseconds, whatever the provider does at this moment.
    send_mail("Your order", "Thank you. It is on its way.\n", None, [request.POST["to"]])
    return HttpResponse("Ordered; the confirmation is on its way.")


urlpatterns = [path("", order)]

if __name__ == "__main__":
    from wsgiref.simple_server import make_server

    from django.core.wsgi import get_wsgi_application

    host, port = (sys.argv[1] if len(sys.argv) > 1 else "0.0.0.0:8000").rsplit(":", 1)
    make_server(host, int(port), get_wsgi_application()).serve_forever()
